"""A number with its word: one model, two models."""


def counted(number: int, word: str) -> str:
    """Write a number and what it counts.

    >>> counted(1, "model"), counted(1200, "model"), counted(0, "finished trial")
    ('1 model', '1,200 models', '0 finished trials')
    """
    return f"{number:,} {word}{'' if number == 1 else 's'}"
