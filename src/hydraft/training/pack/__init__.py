"""A pack: several runs that train in one process over one frozen base."""
