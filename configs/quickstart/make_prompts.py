"""Writes prompts.jsonl: 60 prompts in each of seven kinds, written for this project. `python configs/quickstart/make_prompts.py`"""

from __future__ import annotations

import json
from pathlib import Path

FACTS = """the capital of Portugal|the longest river in Africa|the largest planet of the solar system|the freezing point of water
the author of Hamlet|the colour of chlorophyll|the smallest prime number|the continent that Egypt lies on|the currency of Japan
the metal that is liquid at room temperature|the gas that plants take in|the number of legs of a spider|the ocean west of Europe
the language spoken in Brazil|the organ that pumps blood|the instrument with 88 keys|the tallest animal|the nearest star to Earth
the year that has 366 days|the inventor of the telephone|the main ingredient of glass|the process by which water becomes vapour
the bird that cannot fly and lives in Antarctica|the country shaped like a boot|the unit of electric current|the hardest natural mineral
the season after winter|the opposite of north|the number of sides of a hexagon|the chemical symbol of gold|the home of bees
the mountain range between France and Spain|the food that pandas eat|the sport played at Wimbledon|the painter of the Mona Lisa
the vitamin that sunlight helps to make|the planet with visible rings|the largest desert of hot sand|the material that paper is made of
the city with the Eiffel Tower|the animal that gives wool|the baby of a cow|the sense that the nose serves|the month after June
the number of minutes in an hour|the force that pulls things down|the layer of gas around Earth|the tool that measures temperature
the grain that sushi is made with|the sea between Europe and Africa|the shape of a football|the part of a plant that takes up water
the country north of the United States|the largest ocean|the number of letters in the English alphabet|the fruit that wine is made of
the insect that makes silk|the city called the Big Apple|the number of players in a football team|the animal known as the king of the jungle"""

EXPLAIN = """why the sky is blue|how a bicycle stays upright|why we dream|what a database is|how rain forms|why leaves turn red
what inflation means|how vaccines work|why ice floats|what a browser does|how bread rises|why we yawn|what a comet is
how a battery works|why salt melts ice|what gravity does|how a mirror works|why cats purr|what recycling is for|how bees make honey
why the moon has phases|what a budget is|how glasses help us see|why metal feels cold|what a password manager does|how a sail moves a boat
why onions make us cry|what photosynthesis is|how the heart works|why we need sleep|what an echo is|how a thermos keeps tea hot
why popcorn pops|what a habit is|how tides arise|why birds migrate|what an algorithm is|how soap cleans|why stars twinkle
what friction is|how a lock works|why deserts are cold at night|what a vitamin is|how yeast works|why the sea is salty
what a compass does|how a volcano erupts|why muscles ache after sport|what a cloud server is|how a camera makes a picture
why we sneeze|what a virus is|how a kite flies|why magnets attract iron|what compost is|how a bridge carries weight
why time zones exist|what a melody is|how a seed grows|why we laugh"""

REWRITE = """the meeting was moved to friday because of the holiday|i cant come today as im ill|She dont like the new plan very much
the report what he wrote is too long|Give me the file now.|we was late because the train was slow|This soup is bad.|he run to school every day
the dog it barked all night|You must pay at once.|me and him went to the shop|The results was better than we thought|i has two brother
Your idea is wrong.|the car is more faster than mine|There is many people in the room|He do not know nothing|Send the money today or else.
they is going to the beach tomorrow|the weather is so so good|I am writing to tell you that I want a refund.|This book is boring.
she sing beautiful|we discussed about the problem|The child are playing outside|I look forward to hear from you|he is agree with me
the news are good|Fix this bug quickly!|I didnt saw him yesterday|the team have did a great job|Its raining, lets stay in
You never listen to me.|the cake was ate by the kids|how much costs this ticket|I am boring in this class|He gave me a good advices
the furnitures is old|I have been here since three days|she is married with a doctor|this is the man which called me|We need more informations
do you can help me|he said me the truth|I am having three cats|the police is coming|it depends of the weather|she explained me the rule
I used to going there|they enjoyed very much|please return back the keys|the fish was very tasty and fresh and good and nice
our profit went up by a lot last year|he quickly ran very fast home|the movie was not bad, not good|at this point in time we are unable to help
the reason is because it was closed|in my personal opinion I think it works|the two twins are both the same age|we will revert back to you soon"""

LISTS = """fruits that are yellow|things to pack for a picnic|animals that live in water|words that rhyme with light|uses of a paper clip
musical instruments|ways to save electricity|parts of a tree|things found in a kitchen|sports played with a ball|jobs in a hospital
kinds of weather|countries in South America|board games|vegetables that grow underground|tools of a carpenter|colours of the rainbow
synonyms of happy|breakfast foods|things that are round|planets|reasons to learn a language|birds|items in a first aid kit
winter clothes|ways to relax|types of cheese|school subjects|things that fly|rivers in Europe|hobbies that cost little
insects|shapes|names for a cat|topics for small talk|ingredients of a salad|programming languages|means of transport
things made of wood|rules for a classroom|flowers|gifts for a gardener|desserts|emotions|things to do on a rainy day
words that mean big|spices|islands|steps to wash your hands|questions for an interview|parts of a computer
trees|drinks without sugar|things in the sky|farm animals|kinds of shoes|ways to say thank you|metals|dances|months with 31 days"""

CODE = """reverses a string in Python|adds two numbers in Python|checks whether a number is even in Python|prints the numbers from 1 to 5 in Python
returns the larger of two numbers in Python|counts the words of a sentence in Python|squares every item of a list in Python
reads a file line by line in Python|computes a factorial in Python|removes duplicates from a list in Python|sums a list in Python
converts Celsius to Fahrenheit in Python|says hello to a name in Python|finds the shortest word in a list in Python|sorts a list in Python
swaps two variables in Python|checks for a palindrome in Python|makes a dictionary of squares in Python|joins a list with commas in Python
rounds a number in Python|returns the last item of a list in Python|counts vowels in Python|capitalises each word in Python
flips a coin in Python|prints today's date in Python|adds two numbers in JavaScript|logs hello in JavaScript|doubles an array in JavaScript
filters even numbers in JavaScript|returns the length of a string in JavaScript|joins two arrays in JavaScript|makes a button in HTML
makes a link in HTML|makes a list in HTML|sets the text colour to red in CSS|centres a text in CSS|counts the rows of a table in SQL
selects all names from a table in SQL|sorts a table by age in SQL|deletes a row by id in SQL|lists files in a shell|counts lines of a file in a shell
makes a folder in a shell|prints a variable in a shell|copies a file in a shell|adds two integers in C|prints a line in C
loops ten times in C|declares an array in C|returns a square in C|adds two numbers in Java|prints hello in Java|defines a class Dog in Java
merges two dictionaries in Python|checks whether a key is in a dictionary in Python|splits a string by spaces in Python
returns the first three items of a list in Python|catches a division by zero in Python|multiplies two numbers in Go|prints hello in Go"""

ADVICE = """sleep better|learn to cook|save money each month|make friends in a new city|stop biting nails|prepare for an exam|write a thank-you note
drink more water|keep a room tidy|speak in public|choose a bicycle|start running|read more books|calm a nervous dog|plan a small garden
wake up early|remember names|eat less sugar|work from home|say no politely|buy a used car|handle a rude customer|learn guitar
stay focused|pack a suitcase|ask for a raise|comfort a sad friend|use less plastic|practise a language daily|clean a window
find a lost key|cool a room without air conditioning|choose a gift|take better photos|keep plants alive|avoid back pain|make good coffee
plan a birthday party|write a short story|meet a deadline|fix a squeaky door|grow tomatoes|stay warm outdoors|begin a diary
share a flat|teach a child to swim|reduce stress|organise photos|store bread|behave at an interview|host a dinner|travel light
get over a cold|walk more|spot a fake message|thank a teacher|choose a melon|tidy a desk|learn to type|be on time"""

NUMBERS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
STORIES = (
    "Anna has {a} apples and buys {b} more. How many apples does she have?",
    "A box holds {a} pens. How many pens are in {b} boxes?",
    "What is {a} plus {b}? Answer in words.",
    "Tom had {a} coins and gave away {c}. How many coins are left?",
    "What is {a} times {b}? Say it in one sentence.",
    "A train has {a} wagons with {b} seats each. How many seats are there?",
)


def arithmetic() -> list[str]:
    """Ten pairs of numbers a story, no pair twice: c < a, so that something is left."""
    prompts = []
    for i in range(60):
        pair, story = divmod(i, 6)
        a, b, c = 4 + pair, (3 * pair + story) % len(NUMBERS), pair % 4
        prompts.append(STORIES[story].format(a=NUMBERS[a], b=NUMBERS[b], c=NUMBERS[c]))
    return prompts


def items(text: str) -> list[str]:
    return [item for line in text.splitlines() for item in line.split("|")]


def build() -> dict[str, list[str]]:
    counts = ("three", "four", "five")
    return {
        "facts": [f"Name {item}." for item in items(FACTS)],
        "explain": [f"Explain in one or two sentences {item}." for item in items(EXPLAIN)],
        "rewrite": [f"Rewrite this sentence so that it is correct and friendly: {item}" for item in items(REWRITE)],
        "arithmetic": arithmetic(),
        "lists": [f"List {counts[i % 3]} {item}." for i, item in enumerate(items(LISTS))],
        "code": [f"Write a very short piece of code that {item}." for item in items(CODE)],
        "advice": [f"Give one short tip: how can I {item}?" for item in items(ADVICE)],
    }


if __name__ == "__main__":
    lines = [
        json.dumps({"id": f"{kind}-{i:02d}", "prompt": prompt})
        for kind, prompts in build().items()
        for i, prompt in enumerate(prompts, start=1)
    ]
    (Path(__file__).parent / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    print(len(lines))
