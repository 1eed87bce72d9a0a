"""What a run needs beside the loop."""
