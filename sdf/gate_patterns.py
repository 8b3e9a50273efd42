"""Patterns of the gates: placeholders, refusals, remarks about the text, unfinished sentences.

The patterns of remarks and unfinished sentences are English. Those of placeholders and refusals
cover more languages.
"""

import re

# C1 controls (U+0080 to U+009F) stand in a text that was read as Latin-1 and is not.
CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")
UNFINISHED = re.compile(r"[,:;(\[{]$|\b(?:the|a|an|and|or|of|with|that|which)$")


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE)


# Match "[Insert date]", "[Your Name]", "{institution}", "{{name}}" and "XX%". Do not match
# "[link](address)" (Markdown), "\frac{a}{b}" (TeX) and "[name withheld]" (a finished text).
PLACEHOLDER = _any_of(
    r"\[(?:insert|your|add|enter|date|names?|institution|organi[sz]ation|company|author|title|city"
    r"|state|phone|e-?mail|address|number|recipient|signature|contact|tbd|placeholder|x+(?=\]))"
    r"\b(?![^\]\n]*(?:withheld|redacted))[^\]\n]{0,80}\](?!\()",
    r"(?<![\\\w}$])\{[a-z]+(?:_[a-z]+)*\}",
    r"\{\{[^}\n]{1,60}\}\}",
    r"\bx{2,}\s?%",
    r"\blorem ipsum\b",
    # Spanish, Portuguese, Italian, French, German, Dutch, Polish, Russian, Turkish
    r"\[(?:insert(?:e|ar)|insira|inserir|inserire|inserisci|ins[ée]rez|ins[ée]rer|einf[üu]gen|invoegen"
    r"|wstaw|вставьте|вставить|ekleyin|(?:su|tu|seu|il tuo|votre|ihr|dein|uw|je) (?:nombre|nome|nom"
    r"|name|naam)|twoje imię|ваше имя|adınız|nombre|nome|nom|naam|имя|fecha|datum|дата|tarih"
    r"|direcci[óo]n|endere[çc]o|indirizzo|adresse|adres|адрес|instituci[óo]n|institui[çc][ãa]o"
    r"|istituzione|[ée]tablissement|einrichtung|название|empresa|azienda|entreprise|unternehmen"
    r"|data(?=\]))\b[^\]\n]{0,80}\](?!\()",
    # Chinese, Japanese, Korean
    r"[\[【［](?:请)?(?:填写|插入|输入|您的|你的|姓名|日期|机构名称|公司名称|单位名称|地址|お名前|氏名"
    r"|日付|会社名|住所|記入|挿入|이름|날짜|회사명|기관명|주소|삽입)[^\]】］\n]{0,40}[\]】］]",
)

CANNOT = (
    r"i(?: can't| cannot| can not| won't| will not|(?: am|'m) unable to|(?: am|'m) not able to"
    r"| must decline to)"
)
ACT = (
    r"(?:help|assist|write|create|provide|produce|generate|fulfil|comply|complete|support|engage"
    r"|do (?:this|that|so))"
)
REFUSAL_FIRST = _any_of(  # at the first word of the text
    rf"(?:(?:i'm|i am) sorry|sorry|unfortunately|i apologi[sz]e)?\W*(?:but )?{CANNOT} {ACT}",
    rf"(?:i'm|i am) (?:very |so )?(?:sorry|afraid)\b[^.\n]{{0,60}}{CANNOT}",
    r"(?:i appreciate|thank you for) (?:your|the) (?:request|question|prompt)",
    r"as an ai\b",
)
REFUSAL = _any_of(
    r"\bas an? (?:ai|artificial intelligence|large) (?:language )?model\b",
    r"\bi(?:'m| am) (?:just |only )?an ai language model",
    rf"\b{CANNOT} {ACT}\w*(?: with)? (?:this|that|your) (?:request|prompt)\b",
)
# The same in other languages: an apology and "cannot", or "I cannot write"; "as a language model".
REFUSAL_OTHER_FIRST = _any_of(
    r"(?:lo siento|lamentablemente|disculpa)\b[^.\n]{0,60}\bno puedo\b",
    r"no puedo (?:ayudar|escribir|crear|proporcionar|generar|cumplir|redactar)",
    r"(?:je suis )?d[ée]sol[ée]e?\b[^.\n]{0,60}\bje ne (?:peux|suis) pas\b",
    r"(?:malheureusement|je m'excuse)\b[^.\n]{0,60}\bje ne (?:peux|suis) pas\b",
    r"je ne peux pas (?:vous aider|t'aider|[ée]crire|r[ée]diger|cr[ée]er|fournir|g[ée]n[ée]rer)",
    r"(?:es )?tut mir (?:sehr )?leid\b[^.\n]{0,60}\bich\b[^.\n]{0,60}\b(?:nicht|kein\w*)\b",
    r"(?:leider|entschuldigung)\b\W{1,3}(?:kann|darf) ich\b[^.\n]{0,60}\b(?:nicht|kein\w*)\b",
    r"ich kann (?:ihnen |dir )?(?:dabei|damit|das|diese\w*)\b[^.\n]{0,40}\bnicht\b",
    r"(?:desculpe|sinto muito|lamento|infelizmente)\b[^.\n]{0,60}\bn[ãa]o posso\b",
    r"n[ãa]o posso (?:ajudar|escrever|criar|fornecer|gerar|atender)",
    r"(?:mi dispiace|spiacente|purtroppo)\b[^.\n]{0,60}\bnon posso\b",
    r"non posso (?:aiutar|scrivere|creare|fornire|generare)",
    r"(?:het spijt me|helaas)\b[^.\n]{0,60}\bik\b[^.\n]{0,60}\b(?:niet|geen)\b",
    r"(?:przepraszam|przykro mi|niestety)\b[^.\n]{0,60}\bnie mogę\b",
    r"(?:извините|простите|к сожалению|прошу прощения)[^.\n]{0,60}не могу",
    r"я не могу (?:помочь|написать|создать|выполнить|предоставить)",
    r"(?:üzgünüm|maalesef|özür dilerim)[^.\n]{0,60}(?:yapamam|olamam|yazamam|oluşturamam|veremem)",
    r"(?:很|非常)?(?:抱歉|对不起|對不起|不好意思)[^。\n]{0,30}(?:无法|不能|無法)",
    r"我(?:无法|不能|無法)(?:协助|帮助|提供|编写|撰写|生成|满足|回答|協助|幫助)",
    r"(?:大変)?(?:申し訳|すみません|恐れ入り)[^。\n]{0,60}(?:できません|できかねます|かねます)",
    r"(?:죄송|미안)[^.\n]{0,60}(?:수 없|어렵습니다)",
    r"(?:عذر|آسف|أعتذر)[^.\n]{0,60}(?:لا أستطيع|لا يمكنني)",
    r"(?:क्षमा|माफ|खेद)[^।\n]{0,60}(?:नहीं (?:कर|लिख|दे) सक|असमर्थ)",
)
REFUSAL_OTHER = _any_of(
    r"\b(?:como|come|in quanto) (?:um |un )?model(?:o|lo) (?:de lenguaje|de linguagem|linguistico)",
    r"\ben tant (?:que mod[èe]le de langage|qu'(?:ia\b|intelligence artificielle|assistant ia))",
    r"\bals (?:ein )?(?:ki[- ])?sprachmodell\b|\bals (?:een )?(?:ai-)?taalmodel\b",
    r"\bjako model językowy\b|\bкак языковая модель\b|\bbir dil modeli olarak\b",
    r"作[为為](?:一[个個名])?(?:ai|人工智能|人工智慧|大?(?:型)?(?:语言|語言)模型)",
    r"(?:ai|人工知能|言語モデル)(?:アシスタント)?として",
    r"(?:ai|인공지능|언어 모델)(?:로서|으로서)",
    r"كنموذج لغوي|بصفتي نموذج",
)

TEXT = (
    r"(?:document|draft|memo|memorandum|report|article|abstract|guidance|case study|analysis|manual"
    r"|guide|essay|text)"
)
META_FIRST = _any_of(  # at the first word of the text
    r"(?:certainly|sure|sure thing|absolutely|of course|okay|ok|great|understood|got it)"
    r"(?:!|[.,:;\u2014-]+\s*(?:here|below|i|let me|this is|the following)\b)",
    rf"(?:here(?:'s| is)|below is|the following is|this is)\b[^.!?\n]{{0,120}}"
    rf"(?:\b{TEXT}\b[^.!?\n]{{0,80}}:\s*$|\byou(?:'ve)? (?:requested|asked)|\bas requested\b)",
    rf"i(?:'ve| have) (?:written|drafted|prepared|created)\b[^.!?\n]{{0,60}}\b{TEXT}\b",
)
META = _any_of(
    r"^[^\w\n]{0,9}(?:total |approximate |final )?word count\b\W{0,9}"
    r"(?:approx\w*\W{1,3}|about )?\d",
    r"^[^\w\n]{0,9}(?:approx\w*\W{1,3}|about )?\d[\d,]* words[^\w\n]{0,9}$",
    r"\A```",
    r"</?think(?:ing)?>|<\|[a-z_]+\|>|\[/?INST\]|<(?:start|end)_of_turn>",
)
META_LAST = _any_of(  # in the last ENDING_CHARACTERS of the text
    r"\blet me know if (?:you(?:'d| would) like|you (?:want|need)|this|there's anything)"
    r"[^.\n]{0,40}"
    r"(?:\bme to\b|change|revis|adjust|modif|edit|tone|length|expan|shorte|version|meets"
    r"|works for)",
    r"\bwould you like me to\b[^\"\u201d]*$",
    rf"\bi hope this (?:helps|meets|{TEXT})",
    r"\bfeel free to (?:adjust|modify|customi[sz]e|edit|adapt)",
    r"\b(?:note|disclaimer)\b\W{1,6}"
    r"(?:this|the (?:above|preceding|statistics|figures|data|names))\b[^\n]{0,200}"
    r"\b(?:fictional|fictitious|hypothetical|illustrative purposes|invented|generated by"
    r"|placeholder|simulated)\b",
    rf"\bthis {TEXT} is (?:entirely |purely )?(?:fictional|fictitious|hypothetical)\b",
    rf"\bthis {TEXT} was (?:generated|written) by an? ai\b",
)
ENDING_CHARACTERS = 500
