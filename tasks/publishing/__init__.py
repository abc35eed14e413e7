"""What `publish` is made of: the release, its card and the targets it can go to."""
