"""What ``lakerunner`` can be told, a module for each noun; ``cli`` puts them together."""
