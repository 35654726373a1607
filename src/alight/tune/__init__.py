"""The search for good sampling settings."""
