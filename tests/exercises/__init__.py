"""The exercises: hand-ins of students, right and wrong."""
