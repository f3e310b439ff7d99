/** The documentation of the API, with a form to try it: Swagger UI over our OpenAPI. A page of its own, without the dashboard. */
import "swagger-ui-dist/swagger-ui.css";
import "./docs.css";
import SwaggerUI, { type SwaggerRequest } from "swagger-ui-dist/swagger-ui-es-bundle.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

SwaggerUI({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: -1,
  // the curl command that it shows must not write an error into a picture file
  requestInterceptor: (request: SwaggerRequest) => ({ ...request, curlOptions: ["--fail-with-body"] }),
});
