/** Every route, from the service's own document. The key is the one that the dashboard's pages of this tab use. */
const KEY = "proxykd-key";
const told = document.getElementById("told");

function withKey(request) {
  const key = sessionStorage.getItem(KEY);
  if (key) request.headers.Authorization = `Bearer ${key}`;
  return request;
}

function show() {
  SwaggerUIBundle({
    url: "../openapi.json",
    dom_id: "#routes",
    requestInterceptor: withKey,
    responseInterceptor(response) {
      if (response.url.endsWith("/openapi.json")) told.textContent = response.status === 401 ? "The routes ask for a key." : "";
      return response;
    },
  });
}

document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, document.getElementById("key").value);
  show();
});
show();
