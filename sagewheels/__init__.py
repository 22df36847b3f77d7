"""sagewheels: correct, fast attention wheels, compiled once and never again."""

__version__ = "0.1.0"
