"""One file per dataset that needs settings of its own."""
