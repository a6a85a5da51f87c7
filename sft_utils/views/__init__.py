"""What a page shows: figures, tables and the loss view."""
