"""Runtime: seeding, devices and precision, errors, and what a person sees."""
