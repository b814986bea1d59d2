"""Texts as models write them, in the languages that the estimate is held to."""

# ruff: noqa: RUF001 - full-width punctuation is what Chinese is written with

from collections.abc import Mapping

SAMPLES: Mapping[str, str] = {
    "english prose": (
        "The old lighthouse had stood on the cliff for nearly two hundred years before anyone thought "
        "to ask who had built it. Local stories disagreed: some said a merchant paid for it after "
        "losing three ships in a single winter, while others insisted it was the work of a retired "
        "naval officer with more money than sense. When the county finally opened its archives, a young "
        "historian named Ruth spent an entire summer reading letters, invoices, and half-burned maps. "
        "What she found surprised everyone. The lighthouse had been designed by a schoolteacher who "
        "wanted her students to see mathematics in the world around them. Every step of the spiral "
        "staircase, every window, even the angle of the lamp, followed from a problem she had once "
        "written on a blackboard."
    ),
    "english instructions": (
        "Sure! Here's a quick summary of the differences:\n"
        "\n"
        "- **Latency**: How long a single request takes. Lower is better.\n"
        "- **Throughput**: How many requests per second the system can handle.\n"
        "- **Availability**: The share of time the service answers at all (e.g. 99.95%).\n"
        "\n"
        "To reproduce the issue, follow these steps:\n"
        "\n"
        "1. Start the server with `--debug` enabled.\n"
        "2. Send about 1,000 requests over 32 connections.\n"
        "3. Check whether p99 exceeds 250 ms.\n"
        "\n"
        "If it does, it's probably the connection pool: the default limit is 100, which isn't enough "
        "here. Let me know what you find, and I'll help you tune it further."
    ),
    "python": (
        "import asyncio\n"
        "from dataclasses import dataclass\n"
        "\n"
        "\n"
        "@dataclass(frozen=True)\n"
        "class Order:\n"
        '    """One line of a customer\'s order."""\n'
        "\n"
        "    sku: str\n"
        "    quantity: int\n"
        "    unit_price: float = 0.0\n"
        "\n"
        "    def total(self) -> float:\n"
        "        return self.quantity * self.unit_price\n"
        "\n"
        "\n"
        "async def process_orders(queue: asyncio.Queue[Order], results: dict[str, float]) -> None:\n"
        "    while True:\n"
        "        order = await queue.get()\n"
        "        try:\n"
        "            results[order.sku] = results.get(order.sku, 0.0) + order.total()\n"
        "        except KeyError as exc:\n"
        '            print(f"unknown product {order.sku!r}: {exc}")\n'
        "        finally:\n"
        "            queue.task_done()\n"
    ),
    "javascript": (
        "export async function fetchUserProfile(userId, { signal, retries = 3 } = {}) {\n"
        "  for (let attempt = 0; attempt < retries; attempt++) {\n"
        "    const response = await fetch(`/api/users/${encodeURIComponent(userId)}`, { signal });\n"
        "    if (response.ok) {\n"
        "      const data = await response.json();\n"
        '      return { id: data.id, displayName: data.display_name ?? "Anonymous" };\n'
        "    }\n"
        "    if (response.status === 404) return null;\n"
        "    await new Promise((resolve) => setTimeout(resolve, 2 ** attempt * 100));\n"
        "  }\n"
        "  throw new Error(`Failed to load profile after ${retries} attempts`);\n"
        "}\n"
    ),
    "json": (
        '{"id": "inv_20931", "customer": {"name": "Maria Keller", "email": "maria@example.org", '
        '"active": true}, "lines": [{"sku": "A-1041", "qty": 3, "price": 19.95}, {"sku": "B-77", "qty": '
        '1, "price": 249.0}], "total": 308.85, "currency": "EUR", "notes": null}'
    ),
    "german prose": (
        "Die Entscheidung fiel an einem regnerischen Dienstagabend, als die meisten Mitarbeiter bereits "
        "nach Hause gegangen waren. Der Geschäftsführer hatte die Unterlagen mehrmals gelesen, "
        "doch je länger er darüber nachdachte, desto weniger überzeugten ihn die Zahlen. Zwar "
        "waren die Umsätze im vergangenen Quartal deutlich gestiegen, aber die Kosten für Energie, "
        "Personal und Versicherungen hatten sich beinahe verdoppelt. Wenn das Unternehmen weiterhin "
        "wachsen wollte, musste es entweder neue Märkte erschließen oder die bestehenden Abläufe "
        "grundlegend vereinfachen. Beides würde Zeit brauchen, und Zeit war genau das, was ihnen "
        "fehlte. Am nächsten Morgen lud er die Abteilungsleiter zu einer Besprechung ein, in der "
        "er seine Überlegungen offen darlegte. Niemand widersprach, doch niemand wirkte "
        "erleichtert. Schließlich meldete sich die Leiterin der Entwicklungsabteilung zu Wort und "
        "schlug vor, zunächst nur einen Teil der Fertigung umzustellen und die Ergebnisse "
        "sorgfältig zu messen."
    ),
    "german instructions": (
        "Um ein Verzeichnis zu sichern, öffnen Sie zuerst die Einstellungen und wählen Sie den "
        "gewünschten Speicherort aus. Anschließend klicken Sie auf „Weiter“, damit das Programm "
        "die Dateien prüft. Falls nicht genügend Speicherplatz vorhanden ist, erscheint eine "
        "Fehlermeldung. In diesem Fall sollten Sie alte Sicherungen löschen oder ein anderes "
        "Laufwerk verwenden.\n"
        "\n"
        "1. Laden Sie die aktuelle Version herunter.\n"
        "2. Starten Sie die Installation mit Administratorrechten.\n"
        "3. Prüfen Sie, ob der Dienst läuft.\n"
        "\n"
        "Die Einrichtung dauert in der Regel etwa zehn Minuten. Danach steht Ihnen der volle "
        "Funktionsumfang zur Verfügung."
    ),
    "chinese": (
        "人工智能正在改变我们的生活方式。过去几年里，大型语言模型取得了显著的进步，它们不仅能够回答问题，还可"
        "以编写代码、翻译文章，甚至创作诗歌。然而，这项技术也带来了新的挑战。首先，训练模型需要大量的计算资源"
        "和电力；其次，模型有时会产生看似合理但实际上错误的内容，用户必须自己核实重要的信息。为了解决这些问题"
        "，研究人员提出了许多方法，例如检索增强生成、强化学习以及更严格的评估标准。未来，随着硬件成本的下降和"
        "算法的改进，我们有理由相信，人工智能会在教育、医疗和科学研究等领域发挥更大的作用。"
    ),
    "japanese": (
        "人工知能の発展により、私たちの働き方は大きく変わりつつあります。以前は人が時間をかけて行っていた作業"
        "も、今では数秒で終わることが珍しくありません。しかし、便利になった一方で、新しい問題も生まれています"
        "。たとえば、生成された文章が正しいかどうかを誰が確認するのか、個人情報をどのように守るのか、といった"
        "点です。企業はこうした課題に向き合いながら、従業員が安心して使える仕組みを整える必要があります。まず"
        "は小さな範囲で試してみて、結果を見ながら少しずつ広げていくのが良いでしょう。"
    ),
    "korean": (
        "인공지능 기술이 빠르게 발전하면서 우리의 일상생활도 크게 달라지고 있습니다. 예전에는 "
        "사람이 직접 해야 했던 일들을 이제는 컴퓨터가 대신 처리해 줍니다. 하지만 모든 변화가 "
        "긍정적인 것은 아닙니다. 잘못된 정보가 빠르게 퍼질 수 있고, 개인정보가 유출될 위험도 "
        "있습니다. 따라서 우리는 새로운 기술을 받아들이는 동시에 그것이 가져올 영향에 대해서도 "
        "충분히 고민해야 합니다. 정부와 기업, 그리고 시민 사회가 함께 노력한다면 더 나은 "
        "미래를 만들 수 있을 것입니다."
    ),
    "french": (
        "Le gouvernement a annoncé hier soir une série de mesures destinées à soutenir les petites "
        "entreprises touchées par la hausse des prix de l'énergie. Selon le ministre, ces aides "
        "seront versées dès le mois prochain et concerneront près de deux cent mille artisans et "
        "commerçants. Les syndicats jugent toutefois ces annonces insuffisantes et demandent une "
        "réforme plus profonde du système fiscal."
    ),
    "russian": (
        "Вчера вечером в городе прошёл сильный дождь, и многие улицы оказались затоплены. Жители "
        "рассказывали, что вода поднималась очень быстро и за несколько минут достигла первых "
        "этажей домов. Спасатели работали всю ночь, помогая людям покинуть опасные районы."
    ),
}
