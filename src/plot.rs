//! The picture of a training run: loss and accuracy by epoch, side by side in one PNG, the same pixels on every machine.
//!
//! The font is inside the program (`plot/DejaVuSans-subset.ttf`, licence beside it), so that no system font is needed.

use std::io::Cursor;
use std::path::Path;

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, RGBColor, register_font};

use crate::files::{History, write_atomic};
use crate::{Error, Result};

/// Size of the picture in pixels.
const SIZE: (u32, u32) = (1200, 520);
/// Everything is drawn this much larger and then averaged: plotters itself smooths neither thick lines nor discs.
const SCALE: u32 = 3;
/// Width of a curve, as drawn.
const LINE: u32 = 5 * SCALE / 2;
const FONT: &str = "shadernet-sans";
const FONT_FILE: &[u8] = include_bytes!("plot/DejaVuSans-subset.ttf");

const TRAINING: RGBColor = RGBColor(0x25, 0x63, 0xc9);
const VALIDATION: RGBColor = RGBColor(0xe8, 0x70, 0x1a);
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const FAINT_INK: RGBColor = RGBColor(0x57, 0x60, 0x6a);
const GRID: RGBColor = RGBColor(0xe4, 0xe8, 0xec);
const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);

/// With more epochs than this the points would run into each other, and only the lines are drawn.
const MOST_POINTS: usize = 40;

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws loss and accuracy against the epoch, 1 to n, training and validation, as a PNG of 1200 × 520 pixels.
///
/// Values that are not finite are left out, and the line has a gap there. A title that is too long is drawn smaller.
///
/// # Errors
///
/// [`Error::Invalid`] when the history has no epoch, or its lists differ in length (both validation lists may be
/// empty: then only the training is drawn); else as [`write_atomic`].
pub fn plot_history(history: &History, title: &str, path: &Path) -> Result<()> {
    let epochs = checked_epochs(history)?;
    let percent = |values: &[f64]| values.iter().map(|value| 100.0 * value).collect::<Vec<_>>();
    let (accuracy, val_accuracy) = (percent(&history.accuracy), percent(&history.val_accuracy));

    let (width, height) = (SIZE.0 * SCALE, SIZE.1 * SCALE);
    let mut pixels = vec![0; (width * height * 3) as usize];
    {
        // The only failure is a font without its file, and it is registered here each time: it costs microseconds.
        assert!(register_font(FONT, FontStyle::Normal, FONT_FILE).is_ok(), "the font inside the program is a font");
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        root.fill(&PAPER).map_err(failed)?;
        draw_title(&root, title)?;
        let (_, panels) = root.split_vertically(px(58));
        let (left, right) = panels.split_horizontally(width / 2);
        let loss = Panel {
            name: "loss",
            training: &history.loss,
            validation: &history.val_loss,
            limits: (f64::MIN, f64::MAX),
            legend_below: false,
        };
        loss.draw(&left, epochs)?;
        let accuracy =
            Panel { name: "accuracy in %", training: &accuracy, validation: &val_accuracy, limits: (0.0, 100.0), legend_below: true };
        accuracy.draw(&right, epochs)?;
        root.present().map_err(failed)?;
    }
    let mut png = Cursor::new(Vec::new());
    let encoded = PngEncoder::new(&mut png).write_image(&averaged(&pixels, width), SIZE.0, SIZE.1, ExtendedColorType::Rgb8);
    encoded.map_err(failed)?;
    write_atomic(path, |out| out.write_all(png.get_ref()))
}

/// The number of epochs, if every list has one value for each.
fn checked_epochs(history: &History) -> Result<usize> {
    let epochs = history.loss.len();
    if epochs == 0 {
        return Err(Error::invalid("history to plot", "no epoch", "one at least"));
    }
    let validated = history.val_loss.len().max(history.val_accuracy.len()) > 0;
    let wanted = |validation: bool| if validation && !validated { 0 } else { epochs };
    let lists = [
        ("accuracy", history.accuracy.len(), wanted(false)),
        ("val_loss", history.val_loss.len(), wanted(true)),
        ("val_accuracy", history.val_accuracy.len(), wanted(true)),
    ];
    match lists.into_iter().find(|(_, found, wanted)| found != wanted) {
        Some((name, found, wanted)) => {
            Err(Error::invalid(format!("history to plot: {name}"), format!("{found} values"), format!("{wanted}, as loss has")))
        }
        None => Ok(epochs),
    }
}

fn draw_title(root: &Area, title: &str) -> Result<()> {
    let title: String = title.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let (size, room) = (px(25) as u32, px(SIZE.0 - 60) as u32);
    let (wide, _) = root.estimate_text_size(&title, &TextStyle::from((FONT, size).into_font())).map_err(failed)?;
    let size = if wide > room { (size * room / wide).max(1) } else { size };
    write(root, &title, (px(SIZE.0) / 2, px(32)), size as i32, HPos::Center)
}

/// Writes a line whose capitals are centred on the height of `at`.
fn write(area: &Area, text: &str, at: (i32, i32), size: i32, horizontal: HPos) -> Result<()> {
    let style = TextStyle::from((FONT, size).into_font()).color(&INK).pos(Pos::new(horizontal, VPos::Center));
    area.draw_text(text, &style, (at.0, at.1 + risen(size))).map_err(failed)
}

/// How far above the middle plotters puts the capitals of this font.
fn risen(size: i32) -> i32 {
    size * 21 / 100
}

/// One of the two diagrams.
struct Panel<'a> {
    name: &'a str,
    training: &'a [f64],
    validation: &'a [f64],
    /// The axis does not go beyond these, however the values are rounded.
    limits: (f64, f64),
    /// Whether the legend stands below or above: where such curves usually leave room.
    legend_below: bool,
}

impl Panel<'_> {
    fn draw(&self, area: &Area, epochs: usize) -> Result<()> {
        let values = || self.training.iter().chain(self.validation).copied().filter(|v| drawable(*v));
        let y = Axis::for_values(values(), self.limits);
        let x = Axis::for_epochs(epochs);
        let mut chart = ChartBuilder::on(area)
            .margin_left(px(22))
            .margin_right(px(30))
            .margin_bottom(px(16))
            .margin_top(px(6))
            .x_label_area_size(px(52))
            .y_label_area_size(px(66))
            .build_cartesian_2d(x, y)
            .map_err(failed)?;
        let text = |size, color: &'static RGBColor| TextStyle::from((FONT, px(size)).into_font()).color(color);
        chart
            .configure_mesh()
            .bold_line_style(GRID.stroke_width(SCALE))
            .light_line_style(TRANSPARENT)
            .axis_style(FAINT_INK.stroke_width(SCALE))
            .set_tick_mark_size(LabelAreaPosition::Bottom, px(7))
            .set_tick_mark_size(LabelAreaPosition::Left, px(5))
            .y_label_offset(risen(px(17)))
            .label_style(text(17, &FAINT_INK))
            .axis_desc_style(text(19, &INK))
            .x_desc("epoch")
            .y_desc(self.name)
            .draw()
            .map_err(failed)?;

        let curves = [("training", self.training, TRAINING), ("validation", self.validation, VALIDATION)];
        let curves: Vec<_> = curves.into_iter().filter(|(_, values, _)| !values.is_empty()).collect();
        for (_, values, color) in &curves {
            let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(i, &v)| ((i + 1) as f64, v)).collect();
            // A value that cannot be drawn ends one piece of the line.
            for piece in points.split(|(_, v)| !drawable(*v)) {
                chart.draw_series(LineSeries::new(piece.iter().copied(), color.stroke_width(LINE))).map_err(failed)?;
            }
            if epochs <= MOST_POINTS {
                let shown = || points.iter().copied().filter(|(_, v)| drawable(*v));
                chart.draw_series(shown().map(|p| Circle::new(p, px(5), PAPER.filled()))).map_err(failed)?;
                chart.draw_series(shown().map(|p| Circle::new(p, px(4), color.filled()))).map_err(failed)?;
            }
        }
        let names: Vec<_> = curves.iter().map(|(name, _, color)| (*name, *color)).collect();
        self.draw_legend(&chart.plotting_area().strip_coord_spec(), &names)
    }

    fn draw_legend(&self, area: &Area, curves: &[(&str, RGBColor)]) -> Result<()> {
        let (line, size) = (px(24), (px(136), px(24) * curves.len() as i32 + px(12)));
        let (width, height) = area.dim_in_pixel();
        let left = width as i32 - size.0 - px(12);
        let top = if self.legend_below { height as i32 - size.1 - px(12) } else { px(12) };
        let corners = [(left, top), (left + size.0, top + size.1)];
        area.draw(&Rectangle::new(corners, PAPER.mix(0.9).filled())).map_err(failed)?;
        area.draw(&Rectangle::new(corners, GRID.stroke_width(SCALE))).map_err(failed)?;
        for (i, (name, color)) in curves.iter().enumerate() {
            let (x, y) = (left + px(12), top + px(6) + line * i as i32 + line / 2);
            area.draw(&PathElement::new(vec![(x, y), (x + px(26), y)], color.stroke_width(LINE))).map_err(failed)?;
            area.draw(&Circle::new((x + px(13), y), px(4), color.filled())).map_err(failed)?;
            write(area, name, (x + px(35), y), px(17), HPos::Left)?;
        }
        Ok(())
    }
}

/// Beyond this a loss has diverged; its scale would hide every other value, and differences could overflow.
fn drawable(value: f64) -> bool {
    value.abs() < 1e30
}

/// An axis that ends and is marked at round numbers.
#[derive(Clone)]
struct Axis {
    range: std::ops::Range<f64>,
    marks: Vec<f64>,
    /// Digits after the point that tell the marks apart.
    decimals: usize,
}

impl Axis {
    /// 1 to `epochs` with half an epoch of air, marked at 1 and at multiples of a round step.
    fn for_epochs(epochs: usize) -> Self {
        let mut step = round_step(epochs as f64 / 12.0).max(1.0) as usize;
        if epochs <= 12 {
            step = 1;
        }
        let marks = std::iter::once(1).chain((1..=epochs / step).map(|i| i * step).filter(|&mark| mark > 1));
        let air = 0.5_f64.max(0.02 * epochs as f64);
        Self { range: 1.0 - air..epochs as f64 + air, marks: marks.map(|mark| mark as f64).collect(), decimals: 0 }
    }

    /// From the round number below the least value to the one above the largest.
    fn for_values(values: impl Iterator<Item = f64> + Clone, limits: (f64, f64)) -> Self {
        let (mut low, mut high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let least_span = 1e-6 * low.abs().max(high.abs()).max(1e-3);
        if high - low < least_span {
            let half = (0.05 * low.abs()).max(0.05);
            (low, high) = (low - half, high + half);
        }
        // Of values that are never negative none is expected below 0, and the axis need not show such.
        let limits = if low >= 0.0 { (limits.0.max(0.0), limits.1) } else { limits };
        let step = round_step((high - low) / 6.0);
        // A little air, so that no point lies on the frame.
        let air = 0.03 * (high - low);
        let (first, last) = (((low - air) / step).floor(), ((high + air) / step).ceil());
        let (low, high) = ((first * step).max(limits.0), (last * step).min(limits.1));
        let count = (last - first) as usize;
        let marks = (0..=count).map(|i| (first + i as f64) * step).filter(|mark| (low..=high).contains(mark)).collect();
        Self { range: low..high, marks, decimals: (-step.log10().floor()).clamp(0.0, 9.0) as usize }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.marks.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, mark: &f64) -> String {
        if mark.abs() < 1e6 { format!("{mark:.*}", self.decimals) } else { format!("{mark:.2e}") }
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power).find(|&round| round >= step * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

/// The picture at its final size: each pixel the mean of those drawn for it.
fn averaged(pixels: &[u8], width: u32) -> Vec<u8> {
    let (scale, row) = (SCALE as usize, width as usize * 3);
    let mut small = Vec::with_capacity(pixels.len() / (scale * scale));
    for rows in pixels.chunks_exact(row * scale) {
        for x in (0..row).step_by(3 * scale) {
            for channel in 0..3 {
                let of_row = |r: usize| (0..scale).map(move |i| u32::from(rows[r * row + x + 3 * i + channel])).sum::<u32>();
                small.push(((0..scale).map(of_row).sum::<u32>() / (SCALE * SCALE)) as u8);
            }
        }
    }
    small
}

/// A length of the finished picture, in pixels as drawn.
fn px(length: u32) -> i32 {
    (length * SCALE) as i32
}

/// Drawing into memory does not fail by anything a user does; should it, the reason is kept.
fn failed(reason: impl std::fmt::Display) -> Error {
    Error::invalid("drawing the history", reason, "a picture")
}
