"""Questions about an app's hits, a module each: how many, of what, worth how much, and what did not count."""
