"""What can be measured of a page's accessibility: contrast (WCAG 2.2, 1.4.3), and names."""

from __future__ import annotations

from playwright.sync_api import Page

MEASURE = """() => {
    // Any CSS colour as red, green, blue, alpha.
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    function channels(colour) {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
        return [red, green, blue, alpha / 255];
    }
    const over = ([r, g, b, alpha], below) =>
        [r, g, b].map((value, at) => value * alpha + below[at] * (1 - alpha));
    function luminance(colour) {
        const [r, g, b] = colour.map((value) => {
            value /= 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }
    function ancestors(element) {
        const found = [];
        for (let one = element; one; one = one.parentElement) found.push(getComputedStyle(one));
        return found;
    }
    // Ancestors' backgrounds, from the outermost; below all is the canvas, which the body colours.
    const behind = (element) => ancestors(element).reverse().reduce(
        (below, style) => over(channels(style.backgroundColor), below), [255, 255, 255]);
    function measure(element, colour, text) {
        const style = getComputedStyle(element);
        const ground = behind(element);
        const opacity = ancestors(element).reduce((all, one) => all * one.opacity, 1);
        const [r, g, b, alpha] = channels(colour);
        const shown = luminance(over([r, g, b, alpha * opacity], ground));
        const [dark, light] = [shown, luminance(ground)].sort((one, other) => one - other);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        return { text, ratio: (light + 0.05) / (dark + 0.05), least: large ? 3 : 4.5 };
    }
    const measured = [];
    for (const element of document.querySelectorAll("body *")) {
        if (!element.checkVisibility({ visibilityProperty: true })) continue;
        const style = getComputedStyle(element);
        const text = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE)
            .map((node) => node.data.trim()).join(" ").trim() || element.value;
        const colour = element instanceof SVGElement ? style.fill : style.color;
        if (text) measured.push(measure(element, colour, text));
        if (element.placeholder && !element.value) {
            const placeholder = getComputedStyle(element, "::placeholder").color;
            measured.push(measure(element, placeholder, element.placeholder));
        }
    }
    return measured;
}"""
NAMELESS = """() => {
    const named = "a, button, dialog, input:not([hidden]), svg, textarea";
    const text = (one) => one?.textContent.trim();
    return [
        ...[...document.querySelectorAll(named)].filter(
            (one) => !(text(one) || one.ariaLabel || text(one.labels?.[0]))),
        ...[...document.querySelectorAll("img")].filter((one) => one.src && !one.alt),
    ].map((one) => one.outerHTML);
}"""


def check(page: Page, *texts: str) -> None:
    """Check all that a page shows now, which has to include some texts."""
    measured = page.evaluate(MEASURE)
    seen = [each["text"] for each in measured]
    assert not [text for text in texts if text not in seen], seen
    poor = [each for each in measured if each["ratio"] < each["least"]]
    assert not poor, poor
    assert not page.evaluate(NAMELESS)
