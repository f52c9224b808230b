"""The stories: inspect, score, prune, export, compare. Plain values in, values out, nothing printed."""
