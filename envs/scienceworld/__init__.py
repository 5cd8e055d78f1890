"""ScienceWorld: experiments of elementary school in text, played by the real engine."""
