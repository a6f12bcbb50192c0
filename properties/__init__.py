"""Property files that ship with recbole_dsl; see `recbole_dsl.resources.properties_dir`."""
