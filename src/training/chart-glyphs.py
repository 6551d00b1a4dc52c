"""Writes chart-glyphs.ts: the outlines of printable ASCII (and a few signs) from DejaVu Sans, so that charts look the same on machines without any font.

Usage: python chart-glyphs.py DejaVuSans.ttf        (needs fonttools)
"""
import pathlib
import sys

from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.pens.transformPen import TransformPen
from fontTools.ttLib import TTFont

font = TTFont(sys.argv[1])
glyphs, names = font.getGlyphSet(), font.getBestCmap()
lines = []
for character in [chr(code) for code in range(0x20, 0x7F)] + list('·−×…–'):
    name = names[ord(character)]
    # 1000 units an em instead of 2048, y downwards, whole numbers: nobody sees the difference at these sizes.
    scale = 1000 / font['head'].unitsPerEm
    pen = SVGPathPen(glyphs, ntos=lambda value: str(round(value)))
    glyphs[name].draw(TransformPen(pen, (scale, 0, 0, -scale, 0, 0)))
    key = repr(character) if character != "'" else '"\'"'
    lines.append(f"  [{key}, [{round(glyphs[name].width * scale)}, '{pen.getCommands()}']],")
header = '''/**
 * Glyph outlines of DejaVu Sans 2.37, printable ASCII and a few signs: character -> [advance, SVG path], 1000 units an em, y downwards. Made by chart-glyphs.py.
 *
 * Copyright (c) 2003 by Bitstream, Inc. All Rights Reserved. Bitstream Vera is a trademark of Bitstream, Inc. DejaVu changes are in public domain. Permission is hereby granted,
 * free of charge, to any person obtaining a copy of the fonts accompanying this license ("Fonts") and associated documentation files (the "Font Software"), to reproduce and
 * distribute the Font Software, including without limitation the rights to use, copy, merge, publish, distribute, and/or sell copies of the Font Software, and to permit persons
 * to whom the Font Software is furnished to do so, subject to the following conditions: The above copyright and trademark notices and this permission notice shall be included in
 * all copies of one or more of the Font Software typefaces. The Font Software may be modified, altered, or added to, and in particular the designs of glyphs or characters in the
 * Fonts may be modified and additional glyphs or characters may be added to the Fonts, only if the fonts are renamed to names not containing either the words "Bitstream" or the
 * word "Vera". This License becomes null and void to the extent applicable to Fonts or Font Software that has been modified and is distributed under the "Bitstream Vera" names.
 * The Font Software may be sold as part of a larger software package but no copy of one or more of the Font Software typefaces may be sold by itself. THE FONT SOFTWARE IS
 * PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO ANY WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT OF COPYRIGHT, PATENT, TRADEMARK, OR OTHER RIGHT. IN NO EVENT SHALL BITSTREAM OR THE GNOME FOUNDATION BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
 * INCLUDING ANY GENERAL, SPECIAL, INDIRECT, INCIDENTAL, OR CONSEQUENTIAL DAMAGES, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF THE USE OR INABILITY
 * TO USE THE FONT SOFTWARE OR FROM OTHER DEALINGS IN THE FONT SOFTWARE.
 */
export const glyphs: ReadonlyMap<string, readonly [advance: number, path: string]> = new Map([
'''
out = pathlib.Path(__file__).with_name('chart-glyphs.ts')
out.write_text(header + '\n'.join(lines) + '\n])\n', encoding='utf-8')
print(len(lines), 'glyphs,', out.stat().st_size, 'bytes')
