"""A week of a lake in minutes: lrdb, the planner and the swaps are real, time is virtual, and no segment has rows."""
