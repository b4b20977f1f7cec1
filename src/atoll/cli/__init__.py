"""The commands: a tool parses, calls one function of the library, and prints."""
