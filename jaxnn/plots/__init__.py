"""The pictures of a training (curves, confusion, filters; by matplotlib) and the page of a comparison (HTML)."""
