"""The ground floor: errors, settings, cases, stores and run folders; no torch, no pixels."""
