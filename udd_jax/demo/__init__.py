"""How do I try it in a browser?  One page for a run (Gradio, the extra `demo`).

`fields` has what a person fills in, `painter` a picture to paint on, `requests` and `steering`
check what was typed, `service` computes it in batches, `views` shows it as HTML, `recipes` says how
to make it again, `page` has the page and `server` opens it.
"""
