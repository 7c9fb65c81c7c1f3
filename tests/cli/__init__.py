"""The command as a person meets it: on terminals, in pipes, and interrupted."""
