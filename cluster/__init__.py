"""Where code and files run: settings, run folders, leases, launchers. Imports no other package of the project."""
