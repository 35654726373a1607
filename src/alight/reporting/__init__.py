"""Figures with their conditions -> `report.json`, `report.html`, plots and pictures."""
