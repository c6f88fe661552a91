"""The page in a browser: drop a picture, read the class. Needs selenium, Chromium and its driver.

    python page.py HTTP_PORT PICTURE.png [SCREENSHOT.png]
"""

import sys
import time

import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

port, picture, *screenshot = sys.argv[1:]
address = f"http://127.0.0.1:{port}"
want = requests.post(f"{address}/classify?top=5", data=open(picture, "rb").read()).json()["classes"]
options = webdriver.ChromeOptions()
for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=820,760"):
    options.add_argument(argument)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
try:
    browser.get(address)
    wait = WebDriverWait(browser, 10)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#model option"))
    # A drop as a person does it: the file is given to an input, and its file to an event on the drop area.
    browser.find_element(By.ID, "file").send_keys(picture)
    wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, "#classes li")) == 5)
    browser.execute_script(
        """
        document.getElementById("classes").replaceChildren();
        const files = new DataTransfer();
        files.items.add(document.getElementById("file").files[0]);
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
        """
    )
    lines = wait.until(lambda page: len(found := page.find_elements(By.CSS_SELECTOR, "#classes li")) == 5 and found)
    seen = [tuple(span.text for span in line.find_elements(By.TAG_NAME, "span")) for line in lines]
    assert seen == [(one["class"], f"{100 * one['probability']:.1f} %") for one in want], (seen, want)
    load = lambda page: (rows := page.find_elements(By.CSS_SELECTOR, "#load tr")) and rows[0].text
    assert wait.until(load).split()[1] == "1", load(browser)
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE" and "favicon" not in line["message"]]
    if screenshot:
        time.sleep(2.5)  # until the table has two readings to take rates from
        browser.save_screenshot(screenshot[0])
finally:
    browser.quit()
print("ok  the page in Chromium")
