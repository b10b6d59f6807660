"""What a translation is worth."""
