"""Prompts that no cache has seen: random English words, each about one token."""

from __future__ import annotations

import random

_TEXT = """
able account across action actually address admit affect after again against agency agent agree ahead air allow almost
alone along already also although always among amount analysis animal answer anyone appear apply approach area argue arm
around arrive article artist assume attack attention author available avoid away baby back bank base beat beautiful
because become before begin behavior behind believe benefit best better between beyond bill black blood blue board body
book born both box boy break bring brother budget build building business call camera campaign cancer candidate capital
car card care career carry case catch cause cell center central century certain chair challenge chance change character
charge check child choice choose church citizen city civil claim class clear close coach cold collection college color
come common community company compare computer concern condition conference consider contain continue control cost could
country couple course court cover create crime culture cup current customer cut dark data daughter day dead deal death
debate decade decide decision deep defense degree democratic describe design despite detail determine develop die
difference different difficult dinner direction director discover discuss disease doctor dog door down draw dream drive
drop drug during each early east easy economic economy edge education effect effort eight either election else employee
end energy enjoy enough enter entire environment especially establish even evening event ever every evidence exactly
example executive exist expect experience expert explain eye face fact factor fail fall family far fast father fear
federal feel field fight figure fill film final finally financial find fine finger finish fire firm first fish five
floor fly focus follow food foot force foreign forget form former forward four free friend front full fund future game
garden gas general generation girl give glass goal good government great green ground group grow growth guess gun hair
half hand hang happen happy hard head health hear heart heat heavy help here herself high himself history hit hold home
hope hospital hot hotel hour house however huge human hundred husband idea identify image imagine impact important
improve include increase indeed indicate individual industry information inside instead institution interest interview
investment involve issue item itself job join just keep key kid kill kind kitchen know knowledge land language large
last late later laugh law lawyer lay lead leader learn least leave left leg legal less letter level life light likely
line list listen little live local long look lose loss lost love low machine magazine main maintain major majority make
man manage management manager many market marriage material matter maybe mean measure media medical meet meeting member
memory mention message method middle might military million mind minute miss mission model modern moment money month
more morning most mother mouth move movement movie much music must name nation national natural nature near nearly
necessary need network never new news newspaper next nice night none north note nothing notice number occur offer office
officer official often oil old once one only open operation opportunity option order organization other others outside
over own owner page pain paint paper parent part particular partner party pass past patient pattern pay peace people
perform perhaps period person phone physical pick picture piece place plan plant play player point police policy
political poor popular population position positive possible power practice prepare present president pressure pretty
prevent price private probably problem process produce product production professional professor program project
property protect prove provide public pull purpose push put quality question quickly quite race radio raise range rate
rather reach read ready real reality realize really reason receive recent record red reduce reflect region relate
relationship religious remain remember remove report represent require research resource respond response rest result
return reveal rich right rise risk road rock role room rule run safe same save scene school science scientist score sea
season seat second section security see seek seem sell send senior sense series serious serve service set seven several
shake share shoot short shot should shoulder show side sign significant similar simple simply since sing single sister
sit site situation six size skill skin small smile social society soldier some son song soon sort sound source south
space speak special specific speech spend sport spring staff stage stand standard star start state statement station
stay step still stock stop store story strategy street strong structure student study stuff style subject success
successful such suddenly suffer suggest summer support sure surface system table take talk task tax teach teacher team
technology television tell ten tend term test thank themselves theory thing think third those though thought thousand
threat three through throughout throw thus time today together tonight total tough toward town trade traditional
training travel treat treatment tree trial trip trouble true truth try turn two type under understand unit until usually
value various very victim view violence visit voice vote wait walk wall want war watch water way weapon wear week weight
well west western whatever when where whether which while white whole whose why wide wife will win wind window wish with
within without woman wonder word work worker world worry would write writer wrong yard yeah year yes yet young yourself
"""
_WORDS = tuple(_TEXT.split())


def prompt(num_words: int, seed: int, index: int) -> str:
    """The prompt of request `index`: the same for the same arguments, another for any other."""
    draw = random.Random(f"{seed}/{index}")
    return " ".join(draw.choices(_WORDS, k=num_words))
