"""What every hand-written rule shares. Nothing here knows a component."""
