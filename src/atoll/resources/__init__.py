"""One module a resource: its keys, its plan functions, its steps. Siblings do not import each other."""
