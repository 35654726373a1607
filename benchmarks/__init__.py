"""Speed, measured in pairs: the library against a plain version of the same mathematics."""
