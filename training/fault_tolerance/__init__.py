"""What keeps a broken job from wasting machines.

signals    a wish to stop, noted until a step has ended
lifeline   a rank ends when its launcher does
last_words what a failing rank leaves behind for the person who reads it
"""
