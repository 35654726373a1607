"""Description of files, folders and reports: `alight info` and `alight report`."""
