"""The small trained checkpoint demo-xl: its language, its pictures, its training and its judge."""
