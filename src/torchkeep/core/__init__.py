"""The nouns: frozen data that every other room speaks of. No reading or writing of files here."""
