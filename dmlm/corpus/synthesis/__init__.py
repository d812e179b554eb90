"""Speech, lips, pages and noises made from nothing but a seed, with exact timing."""
