"""The ground floor: pure data, errors and protocols, with nothing but the standard library."""
