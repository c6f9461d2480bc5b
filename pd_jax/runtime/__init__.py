"""What a process needs: errors, the registry, the console, signals, other processes."""
