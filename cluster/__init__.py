"""Where code and files run: settings, run folders, leases, launching. Imports no other package of the project."""
