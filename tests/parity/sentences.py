"""Fifty texts to encode: short, long, with numbers, marks, accents, other scripts; a third are German."""

SENTENCES = (
    "Hi!",
    "Yes.",
    "a",
    "42",
    "The cat sleeps on the warm stove.",
    "A cat is sleeping on the stove because it is warm there.",
    "Nobody expected the bridge to be finished before winter.",
    "Is this seat taken?",
    "Stop! Don't touch that; it's still hot.",
    "The train to Leipzig leaves at 17:42 from platform 9, not at 17:24 from platform 6.",
    "It costs $1,299.99 (plus 19% tax), i.e. about €1.400 in all.",
    "3.14159 is less than 22/7, and 2**10 == 1024.",
    "On 2024-02-29 the temperature fell to -7.5 °C.",
    "Call +49 341 555-0199 between 8 and 12 a.m.",
    "e-mail: jane.doe+lists@example.org, web: https://example.org/a?b=c&d=%20#top",
    "def f(x): return x if x > 0 else -x  # absolute value",
    "SHOUTING IS RARELY NECESSARY, iS iT?",
    "word word word word word word word word word word word word",
    "   spaces   in    odd     places   ",
    "a tab\tand a line\nbreak in one text",
    "“Curly quotes”, ‘single ones’ – and a dash — or two…",
    "Antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis are long words.",
    "xkqzv brrrt fnord wqxj",
    "Die Katze schläft auf dem warmen Ofen.",
    "Eine Katze liegt schlafend auf dem Herd, weil es dort warm ist.",
    "Über den Wolken muss die Freiheit wohl grenzenlos sein, dachte sie.",
    "Fünf größere Äpfel kosten nur zwölf Öre.",
    "Straßenbahnhaltestellenhäuschen",
    "Donaudampfschifffahrtsgesellschaftskapitän ist kein kurzes Wort.",
    "Wann fährt der nächste Zug nach München ab?",
    "Das kostet 1.299,99 € (inkl. 19 % MwSt.).",
    "Gestern regnete es; heute scheint die Sonne – morgen, wer weiß?",
    "»Nein«, sagte er, »das habe ich nie behauptet!«",
    "Zwei Hunde laufen über eine grüne Wiese.",
    "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster.",
    "Der Vertrag verlängert sich um ein Jahr, wenn er nicht drei Monate vorher gekündigt wird.",
    "Bitte schicken Sie uns die Unterlagen bis zum 31.12. zurück.",
    "Sie las den Brief zweimal, faltete ihn und legte ihn zurück in die Schublade, ohne ein Wort zu sagen.",
    "naïve café, jalapeño, smørrebrød, Dvořák, Łódź, façade, coöperate",
    "L'été dernier, nous avons mangé des crêpes à Saint-Malo.",
    "¿Dónde está la biblioteca? ¡Allí, señor!",
    "Привет, мир!",
    "καλημέρα κόσμε",
    "你好,世界",
    "日本語のテキストもあります。",
    "Emoji too: 🙂🚀👩‍👩‍👧 and flags 🇩🇪.",
    "e\u0301 is not always é, and ﬁ may be one character.",
    "Two dogs are running across a green meadow while their owner, an old man with a stick, slowly follows.",
    "When the committee met for the third time that week, the treasurer explained once more that the "
    "money had been spent; that the receipts, or most of them, were in the blue folder; and that no "
    "member present, least of all the chairman, who had signed every one of them, could claim to be "
    "surprised.",
    "The lighthouse had been built in 1871, when ships still came close to the rocks on their way to "
    "the harbour. For eighty years a keeper climbed its 199 steps each evening, lit the lamp, wound the"
    " clockwork and wrote the weather in a book. Then electricity came, and the last keeper, whose "
    "father and grandfather had climbed the same steps, moved to a house in the village. He kept the "
    "books. Forty-three of them, bound in black cloth, stand on a shelf in his daughter's kitchen: "
    "storms, fogs, the winter in which the sea froze, and, on one page, in a different ink, the birth "
    "of a child. Visitors may read them if they wash their hands first. Nobody has asked for the lamp, "
    "which lies wrapped in a blanket in the cellar; it weighs as much as a horse, and nobody knows how "
    "to get it up the stairs.",
)
