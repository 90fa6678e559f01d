"""Personal data in a text, counted by patterns: what stands there in another form is not counted."""
import re

# All repetitions have an end, because a pattern without one takes hours on a hostile text.

MAIL = re.compile(rb"[A-Za-z0-9][\w.+%!-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,9}[A-Za-z]{2,63}")  # name@host.domain
CREDITED = re.compile(rb"^N: *(.+)", re.M)  # in a file CREDITS: N is a person's name,
POSTAL = re.compile(rb"^N:[^\n]{0,200}\n(?:(?!N:)[^\n]{1,200}\n){0,20}?S:", re.M)  # S a line of a postal address
HOLDER = re.compile(rb"(?i:copyright[ ,:]{0,8}(?:\(c\)[ ,:]{0,8})?(?:19|20)\d\d[-, \d]{0,80}(?:by )?)"
                    rb"((?:(?:[A-Z]\.|[A-Z][\w'-]{1,40}) ){0,8}[A-Z][\w'-]{1,40})")  # of people and of organisations


class Count:
    """Counts over many files. add() takes each; counts is then a dict of how many different ones there are."""

    def __init__(self):
        self.mails, self.credited, self.postal, self.holders = set(), set(), 0, set()

    def add(self, path, data):
        """path: str; data: the bytes of the file."""
        self.mails.update(match.lower() for match in MAIL.findall(data))
        self.holders.update(b" ".join(match.split()) for match in HOLDER.findall(data))
        if path.rsplit("/", 1)[-1] == "CREDITS":
            self.credited.update(name.strip() for name in CREDITED.findall(data))
            self.postal += len(POSTAL.findall(data))

    @property
    def counts(self):
        return {"mail addresses": len(self.mails), "names in copyright lines": len(self.holders),
                "names in CREDITS": len(self.credited), "postal addresses in CREDITS": self.postal}
