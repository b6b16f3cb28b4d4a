"""What people read: the summary as Markdown and HTML, the figures. Never imports torch."""
