"""What the commands share: options and where they come from, the process, errors and exit codes, the console."""
