"""``zo-device serve``: a bundle and its runs behind OpenAI's interface, on this machine alone.

app          routes and errors of that interface            knows no model
openai_api   its requests and answers as data
answers      requests to questions, pieces of text to answers
text_queue   writes the texts of all requests side by side, in one thread
models       the bundle and its runs by name, swapped in by writing their values
guard        who may call: this machine, by its own name, with the key where there is one
"""
