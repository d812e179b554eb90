"""A corpus on disk: manifest, media files, noise and noise conditions, and the mouth crop of face videos."""
