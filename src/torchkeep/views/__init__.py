"""One document, several ways to draw it."""
