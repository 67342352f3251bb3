"use strict"; // The page is whole without a script.
