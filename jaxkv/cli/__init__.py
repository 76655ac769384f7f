"""The commands, one file each; main.py is the entry point."""
